"""A trained model as one folder with its card: python scripts/publish.py --run runs/x/fusion --out FOLDER --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from fusion.publish import main

    main()
