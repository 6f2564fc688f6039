"""policy/route"""
