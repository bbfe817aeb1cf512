"""Stage two: fuse the views of a group from cached maps.  accelerate launch train_fusion.py --help"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    from data.lock import refuse_if_running

    demo = Path(__file__).parent / "fusion" / "configs" / "demo.yaml"
    refuse_if_running(sys.argv[1:], demo)  # before the seconds that torch takes to load
    from fusion.train import main  # inside, so that spawned workers skip timm and accelerate

    main()
