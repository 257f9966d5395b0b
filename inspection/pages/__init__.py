"""What people see, on NiceGUI. Every page is one address that can be sent to somebody else."""
