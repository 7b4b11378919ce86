"""Cameras: conversion of ADU to counts and back, calibration, and analysis of the noise."""
