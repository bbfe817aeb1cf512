"""Take over published weights: python scripts/import_weights.py --weights FILE.safetensors --run_dir runs/NAME"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from extract.foreign import main

    main()
