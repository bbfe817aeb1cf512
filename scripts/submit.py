"""A submission to a CXR-LT challenge, checked before it is written: python scripts/submit.py --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from data.submit import main

    main()
