"""The gateway: routes, authorises, turns long calls into jobs, and relays bytes."""
