"""The fleet's machines on EC2: what amazon.aws's modules do not do.

They do not tag a gateway in the call that makes it, launch machines whose user data differ,
know prices, or look at everything that carries a tag. boto3 does; each module here is one part.
"""
