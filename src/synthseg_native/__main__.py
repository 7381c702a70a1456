from synthseg_native.cli import main

raise SystemExit(main())
