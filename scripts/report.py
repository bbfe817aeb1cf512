"""One page about a run: python scripts/report.py runs/demo [more runs] [--out PAGE.html] --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from fusion.report.command import main

    main()
