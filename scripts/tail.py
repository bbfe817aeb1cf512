"""Classifiers for rare classes on cached features: python scripts/tail.py --run_dir runs/x"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from fusion.tail.run import main

    main()
