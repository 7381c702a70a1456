from synthseg_native import stopping

stopping.hear()  # from here on; what follows imports more

from synthseg_native.cli import main  # noqa: E402

raise SystemExit(main())
