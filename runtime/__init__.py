"""How do tokens come out, correctly and fast?"""
