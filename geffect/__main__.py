"""``python -m geffect``."""

from geffect.cli.main import main

main()
