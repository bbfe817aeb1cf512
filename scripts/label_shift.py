"""Prevalences of test, estimated without its labels: python scripts/label_shift.py --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from fusion.label_shift import main

    main()
