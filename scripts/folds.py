"""Cross-validate by patient, with out-of-fold predictions: python scripts/folds.py {split,join} --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from data.folds import main

    def join(**options) -> None:
        from fusion.out_of_fold import join_folds  # here, because split needs no torch

        join_folds(**options)

    main(join)
