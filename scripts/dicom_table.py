"""What becomes of each DICOM file of a folder, as a table: python scripts/dicom_table.py images [--out table.md]"""

if __name__ == "__main__":
    import _root  # noqa: F401
    from jsonargparse import auto_cli

    from data.dicom_table import main
    from data.runs import run_command

    run_command(lambda: auto_cli(main))
