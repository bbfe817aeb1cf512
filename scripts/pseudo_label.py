"""Fill in an external set's unknown labels with a teacher's probabilities: python scripts/pseudo_label.py --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from extract.pseudo_label import main

    main()
