"""`python -m mhicl_fast` is the `mhicl` command."""

from mhicl_fast.cli import main

raise SystemExit(main())
