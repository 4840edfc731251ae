package main

import (
	"debug/buildinfo"
	"os/exec"
	"regexp"
)

// versions asks the programs what they are.
func versions(programs map[string]string) map[string]string {
	v := map[string]string{}
	for _, name := range []string{"ipfs", "chisel", "frps"} {
		if info, err := buildinfo.ReadFile(programs[name]); err == nil {
			v[info.Path] = info.Main.Version
			for _, d := range info.Deps {
				if len(d.Path) > 0 && len(info.Path) >= len(d.Path) && info.Path[:len(d.Path)] == d.Path {
					v[info.Path] = d.Version
				}
			}
		}
	}
	for name, ask := range map[string]string{"ssh": "-V", "stunnel": "-version"} {
		if programs[name] == "" {
			continue
		}
		out, _ := exec.Command(programs[name], ask).CombinedOutput()
		if m := versionText.Find(out); m != nil {
			v[name] = string(m)
		}
	}
	return v
}

var versionText = regexp.MustCompile(`OpenSSH_[\w.]+|stunnel [\d.]+`)
