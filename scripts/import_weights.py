"""Take over published weights: python scripts/import_weights.py --weights FILE.safetensors --run_dir runs/NAME

An encoder without head, such as CXformer or RAD-DINO: --weights model.safetensors --out weights/NAME.safetensors
"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from extract.foreign import main

    main()
