[playlist]
File1={secret}
Length1=3
