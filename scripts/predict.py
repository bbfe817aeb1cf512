"""What does a model say of these X-rays? python scripts/predict.py --model runs/x/fusion --images FOLDER --help"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from fusion.predict_command import main

    main()
