"""The position job: everybody's place in a campaign, recalculated when something it depends on has changed."""
