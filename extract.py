"""Stage one: train a backbone on single images and cache its feature maps.  accelerate launch extract.py --help"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    from data.lock import refuse_if_running

    demo = Path(__file__).parent / "extract" / "configs" / "demo.yaml"
    refuse_if_running(sys.argv[1:], demo)  # before the seconds that torch takes to load
    from extract.train import main  # inside, so that spawned loader workers skip timm and accelerate

    main()
