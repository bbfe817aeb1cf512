"""Stage one: train a backbone on single images and cache its feature maps.  accelerate launch extract.py --help"""

if __name__ == "__main__":  # imported inside, so that spawned loader workers skip timm and accelerate
    from extract.train import main

    main()
