package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// ready waits until a program prepared in DIRECTORY can be used, or PID has ended, or a minute is over.
func ready() error {
	if len(os.Args) != 4 {
		return errors.New("usage: ready DIRECTORY PROGRAM PID")
	}
	directory, program, pid := os.Args[1], os.Args[2], os.Args[3]
	if _, err := strconv.Atoi(pid); err != nil {
		return fmt.Errorf("%q is no pid", pid)
	}
	question, found := map[string]func(string) error{
		"etcd":                    func(directory string) error { return answers(filepath.Join(directory, "etcd.sock")) },
		"faults":                  func(directory string) error { return answers(filepath.Join(directory, "faults.sock")) },
		"kube-apiserver":          serves,
		"kube-controller-manager": hasAccounts,
		"kube-scheduler":          func(string) error { return nil },
	}[program]
	if !found {
		return fmt.Errorf("%q is not a program that is waited for", program)
	}
	deadline := time.Now().Add(time.Minute)
	for {
		err := question(directory)
		if err == nil {
			return nil
		}
		// A program that ended may stay behind as a zombie without a command line.
		if line, _ := os.ReadFile("/proc/" + pid + "/cmdline"); len(line) == 0 {
			return fmt.Errorf("%s has ended: %w", program, err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within a minute: %w", program, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func answers(socket string) error {
	connection, err := net.DialTimeout("unix", socket, time.Second)
	if err != nil {
		return err
	}
	return connection.Close()
}

func client(directory string) (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(directory, "admin.kubeconfig"))
	if err != nil {
		return nil, err
	}
	config.Timeout = 3 * time.Second
	return kubernetes.NewForConfig(config)
}

func serves(directory string) error {
	client, err := client(directory)
	if err != nil {
		return err
	}
	return client.RESTClient().Get().AbsPath("/readyz").Do(context.Background()).Error()
}

// hasAccounts asks for the account that every pod runs as: without it no pod can be made.
func hasAccounts(directory string) error {
	client, err := client(directory)
	if err != nil {
		return err
	}
	_, err = client.CoreV1().ServiceAccounts("default").Get(context.Background(), "default", metav1.GetOptions{})
	return err
}
