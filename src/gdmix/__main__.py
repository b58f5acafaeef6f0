"""``python -m gdmix``: the command line."""

from gdmix.cli import main

main()
