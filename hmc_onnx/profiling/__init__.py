"""What each candidate costs, and how much accuracy it loses."""
