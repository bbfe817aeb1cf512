"""Look at, check, convert and merge feature caches: python scripts/cache.py {info,verify,convert,merge} --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from data.cache_tools import main

    main()
