"""Say how far a ship sails."""

knots, hours = 12, 5
print(f"{knots * hours} nautical miles")
