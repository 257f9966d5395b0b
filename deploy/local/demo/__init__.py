"""`baguni demo`: the story, the events it plays and how quickly they show, a campaign, and the tables."""
