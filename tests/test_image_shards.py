"""An image in a shard is read like a file, and nothing else passes for it."""

import numpy as np
import pytest
import xxhash

from data.image_shards import Member, find_member
from data.images import ImageError, check_file, read_bytes, read_image
from data.scan import scan_images
from data.tables import read_table
from tests.make_data import make_manifest, write_images


@pytest.fixture
def packed(tmp_path):
    """A manifest whose images lie one behind the other in one file, with 100 bytes between them."""
    manifest = make_manifest(tmp_path / "files", num_studies=4)
    write_images(manifest)
    content, names = b"", []
    for row in range(len(manifest)):
        data = manifest.image_path(row).read_bytes()
        content += bytes(100)
        member = Member(tmp_path / "in" / "a b.tar", len(content), len(data), xxhash.xxh3_64_hexdigest(data))
        names.append(f"in/{member.path.name}")
        content += data
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a b.tar").write_bytes(content)
    originals = manifest.select(np.arange(len(manifest)))
    manifest.images["path"] = np.array(names, dtype="str")
    return originals, type(manifest)(manifest.images, manifest.labels, manifest.classes, tmp_path)


def test_images_in_a_shard_read_and_scan_like_files(packed, tmp_path):
    originals, manifest = packed
    for row in range(len(manifest)):
        assert read_bytes(manifest.image_path(row)) == originals.image_path(row).read_bytes()
        np.testing.assert_array_equal(read_image(manifest.image_path(row)), read_image(originals.image_path(row)))
    first = scan_images(originals, tmp_path / "a", workers=2, progress=False)
    second = scan_images(manifest, tmp_path / "b", workers=2, progress=False)
    assert second.readable.all()
    assert first.content == second.content
    assert check_file(manifest.image_path(0)).st_size == (tmp_path / "in" / "a b.tar").stat().st_size


def test_every_damaged_byte_is_told_by_the_name_of_image_and_shard(packed):
    _, manifest = packed
    path = manifest.image_path(3)
    shard, member = manifest.root / "in" / "a b.tar", find_member(path)
    whole = shard.read_bytes()
    for position in range(0, member.nbytes, 7):
        broken = bytearray(whole)
        broken[member.offset + position] ^= 1 << position % 8
        shard.write_bytes(broken)
        with pytest.raises(ImageError, match=r"damaged in its shard .*delete the shard and run") as error:
            read_image(path)
        assert str(path) in str(error.value)
        read_image(manifest.image_path(2))
    for length in (member.offset + member.nbytes - 1, member.offset, 0):
        shard.write_bytes(whole[:length])
        with pytest.raises(ImageError, match="beyond the end of its shard, which was cut"):
            read_image(path)
    shard.unlink()
    with pytest.raises(ImageError, match="does not exist"):
        read_image(path)


def test_damaged_images_of_a_shard_are_rejected_by_name_in_a_scan(packed, tmp_path):
    _, manifest = packed
    shard, member = manifest.root / "in" / "a b.tar", find_member(manifest.image_path(1))
    broken = bytearray(shard.read_bytes())
    broken[member.offset + 30] ^= 4
    shard.write_bytes(broken)
    result = scan_images(manifest, tmp_path / "out", workers=1, max_rejected=0.5, progress=False)
    assert np.flatnonzero(~result.readable).tolist() == [1]
    table = read_table(tmp_path / "out" / "rejected.csv")
    assert table["path"].tolist() == [manifest.images["path"].iat[1]]
    assert "damaged in its shard" in table["reason"].iat[0]


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(packed, tmp_path):
    _, manifest = packed
    inside = make_manifest(tmp_path / "root", num_studies=1)
    inside.images["path"] = [manifest.images["path"].iat[0]]
    (tmp_path / "root" / "in").mkdir(parents=True)
    link = tmp_path / "root" / "in" / "a b.tar"
    link.symlink_to(manifest.root / "in" / "a b.tar")
    result = scan_images(inside, tmp_path / "out", workers=1, max_rejected=1.0, progress=False)
    assert not result.readable.any()
    assert "leads out of the image folder" in result.rejected[0][1]
    link.unlink()
    (manifest.root / "in" / "a b.tar").rename(tmp_path / "root" / "in" / "real.tar")
    link.symlink_to("real.tar")  # a link inside is none of our business
    assert scan_images(inside, tmp_path / "out2", workers=1, progress=False).readable.all()


ZEROS = "0" * 16


@pytest.mark.parametrize(
    "name",
    [
        *("a.tar", "a.tar#1+2", "a.tar#1+2+xyz", f"a.tar#-1+2+{ZEROS}", f"a.tgz#1+2+{ZEROS}", f"#1+2+{ZEROS}"),
        *(f"a.tar#{'9' * 16}+2+{ZEROS}", f"a.tar#1+2+{ZEROS}0", f"a.tar#1+2+{ZEROS[1:]}A"),
    ],
)
def test_other_names_are_ordinary_files(tmp_path, name):
    assert find_member(tmp_path / name) is None
    with pytest.raises(ImageError, match="does not exist"):
        read_image(tmp_path / name)


def test_an_absurd_length_is_refused_before_anything_is_read(packed):
    _, manifest = packed
    shard = manifest.root / "in" / "a b.tar"
    for offset, nbytes in ((0, 10**15 - 1), (10**15 - 1, 5)):
        with pytest.raises(ImageError, match="beyond the end"):
            read_image(Member(shard, offset, nbytes, "0" * 16).path)
    with open(shard, "r+b") as file:
        file.truncate(600 << 20)  # sparse
    with pytest.raises(ImageError, match="larger than 512 MiB"):
        read_image(Member(shard, 0, 513 << 20, "0" * 16).path)
