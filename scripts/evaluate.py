"""How good are predictions, which of two are better? python scripts/evaluate.py --predictions runs/x/fusion --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from fusion.evaluate.command import main

    main()
