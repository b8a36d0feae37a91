"""``python -m geffect``."""

from geffect.cli import main

main()
