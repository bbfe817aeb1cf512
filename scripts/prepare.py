"""Turn a data set into runs/<name>/manifest.csv: python scripts/prepare.py {cxr-lt-2023,table,phantom,images} --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from data.prepare import main

    main()
