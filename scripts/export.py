"""A trained model as one ONNX or torch.export file: python scripts/export.py --model runs/x/fusion --out model.onnx"""

if __name__ == "__main__":
    import _root  # noqa: F401

    from fusion.export_command import main

    main()
