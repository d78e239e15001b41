package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/go-cni"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/spf13/cobra"
)

// newRuntimeCommand is `cni-runtime`: a container runtime as far as network plugins see one. ADD, CHECK, DEL and STATUS are those of
// the library that containerd 2 calls plugins by; GC, which containerd does not call yet, is libcni's, as CRI-O calls it.
func newRuntimeCommand() *cobra.Command {
	var plugins, configuration string
	root := &cobra.Command{Use: "cni-runtime", SilenceUsage: true}
	root.PersistentFlags().StringVar(&plugins, "plugin-dir", "/opt/cni/bin", "where plugins are")
	root.PersistentFlags().StringVar(&configuration, "conf-dir", "/etc/cni/net.d", "where network configurations are")

	load := func() (cni.CNI, error) {
		runtime, err := cni.New(
			cni.WithPluginDir([]string{plugins}), cni.WithPluginConfDir(configuration),
			cni.WithInterfacePrefix("eth"), cni.WithPluginMaxConfNum(1))
		if err != nil {
			return nil, err
		}
		return runtime, runtime.Load(cni.WithDefaultConf)
	}
	// of makes a command for one sandbox: ID NETNS [KEY=VALUE...]; what it answers is printed.
	of := func(name string, call func(cni.CNI, []string, ...cni.NamespaceOpts) (any, error)) {
		root.AddCommand(&cobra.Command{Use: name + " ID NETNS [KEY=VALUE...]", Args: cobra.MinimumNArgs(2), RunE: func(_ *cobra.Command, args []string) error {
			runtime, err := load()
			if err != nil {
				return err
			}
			labels := map[string]string{"IgnoreUnknown": "1"}
			for _, argument := range args[2:] {
				key, value, _ := strings.Cut(argument, "=")
				labels[key] = value
			}
			// As containerd tells it of every sandbox, whether the plugin has the capability or not.
			path := cni.WithCapabilityCgroupPath("/kubepods/" + args[0])
			answer, err := call(runtime, args, cni.WithLabels(labels), path)
			if err != nil || answer == nil {
				return err
			}
			return json.NewEncoder(os.Stdout).Encode(answer)
		}})
	}
	ctx := context.Background()
	of("add", func(runtime cni.CNI, args []string, opts ...cni.NamespaceOpts) (any, error) {
		return runtime.Setup(ctx, args[0], args[1], opts...)
	})
	of("check", func(runtime cni.CNI, args []string, opts ...cni.NamespaceOpts) (any, error) {
		return nil, runtime.Check(ctx, args[0], args[1], opts...)
	})
	of("del", func(runtime cni.CNI, args []string, opts ...cni.NamespaceOpts) (any, error) {
		return nil, runtime.Remove(ctx, args[0], args[1], opts...)
	})
	root.AddCommand(
		&cobra.Command{Use: "status", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
			runtime, err := load()
			if err != nil {
				return err
			}
			return runtime.Status()
		}},
		&cobra.Command{Use: "gc [VALID-ID...]", RunE: func(_ *cobra.Command, valid []string) error {
			files, err := libcni.ConfFiles(configuration, []string{".conflist"})
			if err != nil || len(files) == 0 {
				return fmt.Errorf("no network configuration in %s: %v", configuration, err)
			}
			list, err := libcni.ConfListFromFile(files[0])
			if err != nil {
				return err
			}
			arguments := &libcni.GCArgs{}
			for _, id := range valid {
				arguments.ValidAttachments = append(arguments.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: "eth0"})
			}
			return libcni.NewCNIConfig([]string{plugins}, nil).GCNetworkList(ctx, list, arguments)
		}},
	)
	return root
}
