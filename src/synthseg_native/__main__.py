from synthseg_native import stopping

stopping.hear(stopping.end_at_once)  # until main hears them; what follows imports more

from synthseg_native.cli import main  # noqa: E402

raise SystemExit(main())
