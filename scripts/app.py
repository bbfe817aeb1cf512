"""One study in the browser: findings, heat maps, similar studies. python scripts/app.py --model runs/x/fusion --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from fusion.app.command import main

    main()
