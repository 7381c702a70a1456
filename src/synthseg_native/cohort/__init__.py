"""What knows of cohorts, environments and containers; built on the engine, which never imports it."""
