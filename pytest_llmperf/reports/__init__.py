"""What people and other programs get to see. Reports compute nothing that decides anything."""
