"""What watches baguni: objectives, alerts and dashboards. `make observability` writes what is generated here."""
