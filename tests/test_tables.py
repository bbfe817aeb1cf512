"""Every fault of a table is one line that names the file, the row and the column."""

import gzip

import numpy as np
import pandas as pd
import pytest

from data import tables
from data.errors import InputError
from data.tables import read_table, write_table

BAD_TABLES = {
    "one field too many": (b"a,b\n1,2\n1,2,3\n", "row 3: 3 fields, but the header has 2"),
    "one field too few": (b"a,b\n1,2\n1\n", "row 3: 1 fields"),
    "too few after a quoted line break": (b'a,b\n"x\ny",2\n1\n', "row 4: 1 fields"),
    "trailing comma in the rows": (b"a,b\n1,2,\n", "row 2: 3 fields"),
    "trailing comma in the header": (b"a,b,\n1,2,\n", "row 1: column 3 has no name"),
    "column name of spaces": (b"a, ,c\n1,2,3\n", "row 1: column 2 has no name"),
    "duplicate column": (b"a,b,a\n1,2,3\n", "row 1: column 'a' occurs twice"),
    "missing column": (b"a,c\n1,2\n", "row 1: missing column 'b'; found 'a', 'c'"),
    "other case": (b"a,B\n1,2\n", "missing column 'b'"),
    "semicolons": (b"a;b\n1;0,5\n", "separated by commas"),
    "tabs": (b"a\tb\n1\t2\n", "separated by commas"),
    "NUL in an id": (b"a,b\n1,2\n3\x00,4\n", "row 3: NUL character"),
    "NUL in the header": (b"a\x00,b\n1,2\n", "row 1: NUL character"),
    "unclosed quote": (b'a,b\n1,2\n"3,4\n5,6\n', "row 3: .*quote"),
    "unclosed quote in the header": (b'"a,b\n1,2\n', "row 1: .*quote"),
    "text after a quote": (b'a,b\n"1"x,2\n', "row 2: .*quote"),
    "empty file": (b"", "empty file"),
    "only a byte order mark": (b"\xef\xbb\xbf", "empty file"),
    "only blank lines": (b"\n\r\n\n", "empty file"),
    "only a header": (b"a,b\n", "no rows below the header"),
    "header and blank lines": (b"a,b\n\n\n", "no rows below the header"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), "not UTF-8"),
    "UTF-16 without a mark": ("a,b\n1,2\n".encode("utf-16-le"), "row 1: NUL character"),
    "Latin-1": ("a,b\nMüller,2\n".encode("latin-1"), "not UTF-8"),
    "cut inside a character": ("a,b\n1,ü".encode()[:-1], "not UTF-8"),
    "huge field": (b"a,b\n1," + b"x" * 200_000 + b"\n", "row 2: field larger"),
    "HTML page instead of a table": (b"<html>\n<p>a, b</p>\n", "missing column"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_bad_table_is_one_line_naming_file_and_place(tmp_path, kind, compressed):
    content, message = BAD_TABLES[kind]
    path = tmp_path / ("t.csv.gz" if compressed else "t.csv")
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(InputError, match=message) as caught:
        read_table(path, required=("a", "b"))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_file_folder_and_damaged_gzip_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path)
    content = gzip.compress(b"a,b\n" + b"1,2\n" * 1000)
    for name, data in (("cut.csv.gz", content[:-9]), ("plain.csv.gz", b"a,b\n1,2\n"), ("half.csv.gz", content[:20])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="gzip"):
            read_table(tmp_path / name)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 16
    (tmp_path / "flipped.csv.gz").write_bytes(flipped)
    with pytest.raises(InputError):
        read_table(tmp_path / "flipped.csv.gz")


def test_a_gzip_bomb_and_an_endless_line_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "FREE_EXPANSION", 1000)
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"0,0\n" * 500_000))
    with pytest.raises(InputError, match="expands"):
        read_table(tmp_path / "bomb.csv.gz")
    monkeypatch.setattr(tables, "MAX_LINE", 50)
    (tmp_path / "line.csv").write_bytes(b"a,b\n1," + b"x" * 90)
    with pytest.raises(InputError, match="row 2: line longer"):
        read_table(tmp_path / "line.csv")


def test_values_stay_the_text_they_are(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('id,x,y\n007,NA,\nnull,"a,""b""\nc", 1.0 \n' + "1" * 50 + ",1e5,ü\n", encoding="utf-8")
    frame = read_table(path)
    assert frame.values.tolist() == [["007", "NA", ""], ["null", 'a,"b"\nc', " 1.0 "], ["1" * 50, "1e5", "ü"]]
    assert [str(dtype) for dtype in frame.dtypes] == ["str"] * 3
    assert list(frame.index) == [0, 1, 2]


@pytest.mark.parametrize(
    "content", ["a,b\n1,2\n3,4\n", "a,b\r\n1,2\r\n3,4", "a,b\r1,2\r3,4\r", '\n"a",b\n\n1,2\n3,"4"\n\n']
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_mark_line_ends_quotes_and_gzip_do_not_matter(tmp_path, content, mark):
    (tmp_path / "t.csv").write_bytes(mark + content.encode())
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(mark + content.encode()))
    for name in ("t.csv", "t.csv.gz"):
        frame = read_table(tmp_path / name, required=["b"])
        assert frame.to_dict("list") == {"a": ["1", "3"], "b": ["2", "4"]}


def test_chunks_join_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "CHUNK_ROWS", 3)
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{i},x{i}\n" for i in range(10)))
    assert read_table(tmp_path / "t.csv")["b"].tolist() == [f"x{i}" for i in range(10)]


def test_written_tables_read_back_equal(tmp_path):
    odd = ["", " ", "a,b", 'say "hi"', "line\nbreak", "return\rhere", "käse 肺", "'", "\t", "007"]
    frame = pd.DataFrame({"plain": list("abcdefghij"), 'odd, "name"': odd}, dtype="str")
    write_table(tmp_path / "t.csv", frame)
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.csv"), frame)
    assert (tmp_path / "t.csv").read_bytes().startswith(b'plain,"odd, ""name"""\na,\nb, \nc,"a,b"\n')
    write_table(tmp_path / "one.csv", frame[['odd, "name"']])
    pd.testing.assert_frame_equal(read_table(tmp_path / "one.csv"), frame[['odd, "name"']])


def test_written_floats_are_shortest_and_exact(tmp_path):
    values = np.array([0.1, 1 / 3, np.nan, 1e-8, 1.0], dtype=np.float32)
    write_table(tmp_path / "t.csv", pd.DataFrame({"n": range(5), "p": values}))
    texts = read_table(tmp_path / "t.csv")["p"].tolist()
    assert texts[0] == "0.1"
    assert texts[2] == ""
    back = np.array([float(text or "nan") for text in texts], dtype=np.float32)
    np.testing.assert_array_equal(back, values)


def test_other_columns_may_be_left_out_and_columns_may_lack_a_name(tmp_path):
    (tmp_path / "t.csv").write_bytes(b',a,,b\n0,1,"x\ny",2\n1,3,,4\n')
    table = read_table(tmp_path / "t.csv", required=("b", "a"), only_required=True, unnamed=True)
    assert table.to_dict("list") == {"a": ["1", "3"], "b": ["2", "4"]}
    table = read_table(tmp_path / "t.csv", unnamed=True)
    assert table.to_dict("list") == {"column 1": ["0", "1"], "a": ["1", "3"], "column 3": ["x\ny", ""], "b": ["2", "4"]}
    with pytest.raises(InputError, match="row 1: column 1 has no name"):
        read_table(tmp_path / "t.csv", required=("a",), only_required=True)
    (tmp_path / "t.csv").write_bytes(b",a,b\n0,1,2\n1,3\n")
    with pytest.raises(InputError, match="row 3: 2 fields"):
        read_table(tmp_path / "t.csv", required=("a",), only_required=True, unnamed=True)
    (tmp_path / "t.csv").write_bytes(b",column 1\n0,1\n")
    with pytest.raises(InputError, match="column 'column 1' occurs twice"):
        read_table(tmp_path / "t.csv", unnamed=True)


def test_header_and_rows_may_end_in_empty_fields_where_that_is_allowed(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a,b,,\n1,,\n3,4\n5,6,,,,\n")
    table = read_table(tmp_path / "t.csv", blank_end=True)
    assert table.to_dict("list") == {"a": ["1", "3", "5"], "b": ["", "4", "6"]}
    assert read_table(tmp_path / "t.csv", ("b",), only_required=True, blank_end=True)["b"].tolist() == ["", "4", "6"]
    with pytest.raises(InputError, match="row 1: column 3 has no name"):
        read_table(tmp_path / "t.csv")
    for line, fault in ((b"1,2,,3", "row 2: 4 fields"), (b"1", "row 2: 1 fields")):
        (tmp_path / "t.csv").write_bytes(b"a,b,,\n" + line + b"\n")
        with pytest.raises(InputError, match=f"{fault}, but the header has 2 columns"):
            read_table(tmp_path / "t.csv", blank_end=True)
    (tmp_path / "t.csv").write_bytes(b"a,,b,\n1,2,3\n")
    with pytest.raises(InputError, match="row 1: column 2 has no name"):
        read_table(tmp_path / "t.csv", blank_end=True)
    (tmp_path / "t.csv").write_bytes(b",,\n1,2,3\n")
    with pytest.raises(InputError, match="row 1: missing column 'a'"):
        read_table(tmp_path / "t.csv", ("a",), blank_end=True)
