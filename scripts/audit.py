"""Look for leaks, duplicates and faults in manifests: python scripts/audit.py runs/x/manifest.csv --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from data.audit.command import main

    main()
