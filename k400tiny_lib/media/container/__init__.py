"""What the containers of videos say, read without decoding."""
