"""`her2-server response`: does the image say more than the needle? Over tables or over sites."""
