"""ressa"""
