"""Why does a run say that? python scripts/explain.py --run_dir runs/x --study ID [ID ...] --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from fusion.explanation import main

    main()
