"""Stage two: fuse the views of a group from cached maps.  accelerate launch train_fusion.py --help"""

if __name__ == "__main__":  # imported inside, so that spawned workers skip timm and accelerate
    from fusion.train import main

    main()
