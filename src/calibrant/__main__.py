"""``python -m calibrant``, which is what `torchrun -m calibrant` starts in every process."""

from calibrant.cli import main

if __name__ == "__main__":
    main()
