"""Measure the audit on planted copies and made-up thumbnails: python scripts/measure_audit.py {recall,speed} --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from data.audit.measure import main

    main()
