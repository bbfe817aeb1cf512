"""Combine several results of one manifest into one: python scripts/ensemble.py --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from fusion.ensemble import main

    main()
