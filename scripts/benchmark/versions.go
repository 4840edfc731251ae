package main

import (
	"debug/buildinfo"
	"os/exec"
	"regexp"
	"strings"
)

// builtOf are the programs that are built here, and their modules.
var builtOf = map[string]string{
	"ipfs": "github.com/ipfs/kubo", "chisel": "github.com/jpillora/chisel", "frps": "github.com/fatedier/frp",
}

// installed are the system's, and how they are asked what they are.
var installed = map[string][]string{"ssh": {"-V"}, "stunnel": {"-version"}}

// versions says what the programs are.
func versions(programs map[string]string) map[string]string {
	v := map[string]string{}
	for program, module := range builtOf {
		if version := moduleVersion(programs[program], module); version != "" {
			v[module[strings.LastIndexByte(module, '/')+1:]] = version
		}
	}
	for program, ask := range installed {
		if programs[program] == "" {
			continue
		}
		out, _ := exec.Command(programs[program], ask...).CombinedOutput()
		if m := versionText.FindSubmatch(out); m != nil {
			v[program] = string(m[1])
		}
	}
	return v
}

var versionText = regexp.MustCompile(`(?:OpenSSH_|stunnel )([\w.]*\w)`)

// moduleVersion reads the version of a module that a program is built of.
func moduleVersion(program, module string) string {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return ""
	}
	for _, d := range info.Deps {
		if d.Path == module {
			return d.Version
		}
	}
	return info.Main.Version
}
