"""SynthSeg brain MRI segmentation that runs natively and proves itself equal to the reference."""

__version__ = "0.1.0"
